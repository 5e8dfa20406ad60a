"""The figures of the documentation: tables and single numbers, written into marked places of pages that people edit."""

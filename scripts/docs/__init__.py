"""The figures of the documentation: tables and single numbers, written into marked parts of hand-written pages."""

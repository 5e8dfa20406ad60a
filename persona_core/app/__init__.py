"""The app's pages: one module for each tab, and what the tabs share. Only they and app.py import gradio."""

"""The app: a language model's persona traits, token by token. `python app.py` serves it; Spaces run it."""

from persona_core.app.serve import main

if __name__ == "__main__":
    main()

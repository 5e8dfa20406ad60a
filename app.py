"""The app: a language model's persona traits, token by token. `python app.py` serves it; Spaces run it."""

import sys

if __name__ == "__main__":
    sys.stderr.write("loading the app ...\n")  # before the imports, which take seconds
    from persona_core.app.serve import main

    main()

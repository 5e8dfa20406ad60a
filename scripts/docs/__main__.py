"""Run as `python -m scripts.docs`."""

from scripts.docs.fill import main

if __name__ == "__main__":
    raise SystemExit(main())

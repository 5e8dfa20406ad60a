"""`persona intervene` from a checkout: python -m scripts.intervene --help"""

import sys

from persona_core.cli.intervene import main

if __name__ == "__main__":
    sys.exit(main())

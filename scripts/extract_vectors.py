"""`persona extract` from a checkout: python -m scripts.extract_vectors --help"""

import sys

from persona_core.cli.extract import main

if __name__ == "__main__":
    sys.exit(main())

"""`persona publish` from a checkout: python -m scripts.publish --help"""

import sys

from persona_core.cli.publish import main

if __name__ == "__main__":
    sys.exit(main())

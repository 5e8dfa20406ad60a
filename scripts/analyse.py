"""`persona analyse` from a checkout: python -m scripts.analyse --help"""

import sys

from persona_core.cli.analyse import main

if __name__ == "__main__":
    sys.exit(main())

"""`persona replay` from a checkout: python -m scripts.replay --help"""

import sys

from persona_core.cli.replay import main

if __name__ == "__main__":
    sys.exit(main())

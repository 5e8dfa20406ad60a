"""`persona contaminate` from a checkout: python -m scripts.contaminate --help"""

import sys

from persona_core.cli.contaminate import main

if __name__ == "__main__":
    sys.exit(main())

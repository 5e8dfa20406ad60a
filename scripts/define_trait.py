"""`persona define-trait` from a checkout: python -m scripts.define_trait --help"""

import sys

from persona_core.cli.define_trait import main

if __name__ == "__main__":
    sys.exit(main())

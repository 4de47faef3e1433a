"""``python -m bdg_fast.cli``."""

from . import main

raise SystemExit(main())

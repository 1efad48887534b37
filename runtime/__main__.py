"""`python -m quasar.runtime`."""

from quasar.runtime.cli import main

raise SystemExit(main())

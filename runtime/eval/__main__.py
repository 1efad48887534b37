"""`python -m quasar.runtime.eval`."""

from quasar.runtime.eval.cli import main

raise SystemExit(main())

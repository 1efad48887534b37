"""`python -m quasar.runtime.bench`."""

from quasar.runtime.bench.cli import main

raise SystemExit(main())

"""`python -m quasar.exporter`."""

from quasar.exporter.cli import main

raise SystemExit(main())

"""Reports: what a run took, as data. docs/run-report.md describes every key."""

"""Tasks to try batchd with; the README and the tests import them, batchd itself never does."""

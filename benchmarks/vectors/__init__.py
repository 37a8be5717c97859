"""Search of a site's vectors beside other stores that run on one machine: `python -m benchmarks.vectors`."""

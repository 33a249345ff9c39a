"""mmguard beside other guards and gateways: `python -m benchmarks.peers run --json out.json`."""

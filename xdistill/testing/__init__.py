"""What a third-party domain tests itself with: closed-form oracles, domain conformance and a reference loop."""

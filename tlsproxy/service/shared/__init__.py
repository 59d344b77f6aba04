"""State that several gateways share, in a store: limits, failed authentications, locks."""

"""What the tests share: certificates, a gateway process, an upstream that does as it is told, raw clients."""

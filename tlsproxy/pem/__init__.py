"""Files of certificates, keys and CRLs, as people have them: read as PEM, or recognised and told how to convert."""

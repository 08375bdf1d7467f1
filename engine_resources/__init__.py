"""Adapters of the cloud side: storage, compute, registry, tables."""

"""What one unit (coin × timeframe) does in each stage: read from the bucket, call `logic`, write to the bucket. No Dagster here."""

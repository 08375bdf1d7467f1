"""Pure training logic: no Dagster, Ray, MLflow, SQL or network."""

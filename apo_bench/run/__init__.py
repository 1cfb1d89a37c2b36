"""An experiment file in, a run folder out: jobs, workers, executors, records, tables, status."""

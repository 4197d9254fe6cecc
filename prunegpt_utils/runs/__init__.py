"""What to run: parameters, study files, records, execution, validation."""

"""What people see: frames, tables, figures, pages, model cards."""

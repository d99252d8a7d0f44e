"""SeqIO task registrations; code names a task by its string and never imports this package."""

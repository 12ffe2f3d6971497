"""Pages: their templates, figures and charts, whatever report they show."""

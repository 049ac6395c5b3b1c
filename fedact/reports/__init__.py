"""From records, plans and measurements to tables, figures and report.html; the only place that draws."""

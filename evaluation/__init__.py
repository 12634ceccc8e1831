"""How well noise is generated and removed: test sets, protocols, measures, tables, the report."""

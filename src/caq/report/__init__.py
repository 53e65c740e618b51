"""From stored answers to tables, decisions and pages: statistics only, no model is run."""

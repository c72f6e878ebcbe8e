"""Results for people: tables, plots and one HTML page. Nothing is measured or computed here."""

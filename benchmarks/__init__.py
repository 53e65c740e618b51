"""What is measured of CAQ itself, and what made the bundled pair; none of it is in the package."""

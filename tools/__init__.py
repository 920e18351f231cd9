"""Programs for those who change the code. They are no part of the package that is installed."""

"""Many runs from one file, gone on with over many sittings, and the table that they make."""

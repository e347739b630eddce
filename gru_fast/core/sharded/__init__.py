"""Parameters spread over processes (DTensor): what of them lies here, and how sums come together."""

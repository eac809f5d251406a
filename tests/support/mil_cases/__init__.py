"""Cases of MIL operators: a file of rows for each file of operators in exporters/mil/ops."""

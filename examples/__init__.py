"""What sellers and payers write with x402kit. Each file runs as it is."""

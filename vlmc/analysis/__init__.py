"""What a design costs, read off its graphs: FLOPs, bytes and memory of each distinct block, as
polynomials in the sizes of a batch."""

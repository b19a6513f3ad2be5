"""The parts of `raybench.bench gpu`; `subjects.PARTS` lists what each of them measures."""

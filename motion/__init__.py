"""The mathematics of the problem: spectra, flow conventions, normalisation, loops, motion files. No networks."""

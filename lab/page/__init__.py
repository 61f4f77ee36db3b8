"""Results as one page: tables and pictures written into markdown from JSON, and all of it as one HTML file.

`markers` and `sources` keep a document equal to the results beside it; `documents`, `sections`, `links`,
`figures`, `prepare` and `build` make a page of it that opens without a network.
"""

"""The paper's tables: experiments, their stages and the report; the demonstration."""

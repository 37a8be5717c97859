"""The replay twin: the mesh's own decisions over recorded traffic and prices, against rivals and against hindsight.

`python -m benchmarks.replay` plays whole days of a mesh of twenty regions, request by request, under the product's own
planner and under the rules that others route by, and compares each with the least that the day could have cost.

What is real: round trips between the regions of one cloud and how they vary, two years of its prices on demand and for
spot machines, the daily rhythms and the second-by-second unrest of recorded services, how long spot machines lived. The
data are not part of the project; NEARMESH_TEST_DATA names their folder.

What is assumed, the same for everyone:

- Two nodes in each region, one on demand and one spot, of one machine type, some instances behind one queue each. They
  are sized by their own region's busiest ten minutes, so that every region could serve itself on demand.
- A region's day is shifted by its longitude, its size is drawn; a trace's unrest is that of as many copies as the
  region has traffic for. Times of an inference are log-normal, with quantiles such as machines of the type show.
- A year of price history passes in a day, so prices change every few hours. A spot machine gives 30 s of notice.
- The day is played in time-lapse, 24 times as fast; requests, queues and decisions are not. What has to be learnt
  changes 24 times as fast as in truth.
- What a node costs is its price for the time that an inference takes it at full capacity, whoever else is on it; so an
  idle node costs nothing, and all that is done counts, second attempts too. No transfer is charged.
- An engine call that has begun is not stopped when its caller is gone.

Everyone learns of nodes that leave or return a second late, fails over on errors and on silence, and leaves alone who
failed several times in a row; rivals by Envoy's outlier detection and health checks. Rules that know no distance also
play with the nodes within reach of the deadline alone, which an operator would have to configure. Nobody but the
optimum knows the future.
"""

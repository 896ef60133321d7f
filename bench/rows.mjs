/**
 * The rows of the tables: which figure of which measure, and what DESIGN.md section 9 wants of it.
 */

/**
 * @typedef {import('./clients.mjs').Sample} Sample
 * @typedef {import('./targets.mjs').Target['column']} Column
 * @typedef {Partial<Record<Column, Sample>>} Cells The samples of one measure in one round.
 * @typedef {Record<string, Cells>} Round By measure.
 *
 * @typedef {object} Goal What is wanted: of pgjot's figure, or of its ratio to another column's.
 * @property {string} wanted In words, for the table of targets.
 * @property {Column} [against] Whose figure it is divided by. Default: nobody's.
 * @property {number} [atLeast]
 * @property {number} [atMost]
 *
 * @typedef {object} Row
 * @property {string} title
 * @property {string} measure
 * @property {(sample: Sample, column: Column, round: Round) => number} figure NaN where a column has no such figure.
 * @property {'more' | 'less'} better
 * @property {boolean} [plotted]
 * @property {Goal[]} [goals]
 */

const named = (/** @type {string} */ name) => (/** @type {Sample} */ sample) => sample[name] ?? NaN;
const perSecond = named('perSecond');
const cpuUs = named('cpuUs');

/**
 * What a column takes longer than a direct connection.
 *
 * @param {string} measure
 * @param {string} name
 * @returns {Row['figure']}
 */
const added = (measure, name) => (sample, column, round) =>
  column === 'direct' ? NaN : (sample[name] ?? NaN) - (round[measure]?.direct?.[name] ?? NaN);

/**
 * A figure of a thousand clients divided by that of ten.
 *
 * @param {string} name
 * @returns {Row['figure']}
 */
const growth = (name) => (sample, column, round) =>
  (sample[name] ?? NaN) / (round['paced-10']?.[column]?.[name] ?? NaN);

/** @type {readonly Row[]} */
const STATEMENTS = [1, 16, 64, 1_000].flatMap((clients) =>
  ['simple', 'extended', 'prepared'].flatMap((mode) => {
    const measure = clients === 16 ? mode : `${mode}-${clients}`;
    const many = `${clients.toLocaleString('en')} client${clients === 1 ? '' : 's'}`;
    /** @type {Row[]} */
    const rows = [
      {
        title: `statements/s, ${mode}, ${many}`,
        measure,
        figure: perSecond,
        better: 'more',
        plotted: mode === 'prepared',
      },
      {
        title: `proxy CPU, µs per statement, ${mode}, ${many}`,
        measure,
        figure: cpuUs,
        better: 'less',
        plotted: clients === 16,
        ...(measure === 'prepared' && {
          goals: [
            {
              wanted: 'CPU per statement, prepared, 16 clients: ≤ 1.25× PgBouncer',
              against: 'pgbouncer',
              atMost: 1.25,
            },
          ],
        }),
      },
    ];
    return rows;
  }),
);

/** @type {readonly Row[]} */
const LATENCY = ['simple', 'extended', 'prepared'].flatMap((mode) => {
  const measure = `${mode}-1`;
  /** @type {Row[]} */
  const rows = [
    {
      title: `latency added, µs, ${mode}, 1 client, 10th percentile`,
      measure,
      figure: added(measure, 'quietUs'),
      better: 'less',
      plotted: mode === 'prepared',
      ...(mode === 'prepared' && {
        goals: [
          {
            wanted: 'latency added per statement, 1 client: ≤ 1.25× what PgBouncer adds',
            against: 'pgbouncer',
            atMost: 1.25,
          },
        ],
      }),
    },
    {
      title: `latency added, µs, ${mode}, 1 client, median`,
      measure,
      figure: added(measure, 'medianUs'),
      better: 'less',
    },
  ];
  return rows;
});

/** @type {readonly Row[]} */
const GROWTH = [
  ...[10, 100, 1_000].flatMap((clients) => {
    const what = `${clients.toLocaleString('en')} clients, equal offered load`;
    /** @type {Row[]} */
    const rows = [
      {
        title: `statements/s, ${what}`,
        measure: `paced-${clients}`,
        figure: perSecond,
        better: 'more',
      },
      {
        title: `p99, µs, ${what}`,
        measure: `paced-${clients}`,
        figure: named('p99Us'),
        better: 'less',
      },
    ];
    return rows;
  }),
  {
    title: 'growth: statements/s of 1,000 clients ÷ of 10',
    measure: 'paced-1000',
    figure: growth('perSecond'),
    better: 'more',
    goals: [{ wanted: 'growth: throughput of 1,000 clients ≥ 0.95× that of 10', atLeast: 0.95 }],
  },
  {
    title: 'growth: p99 of 1,000 clients ÷ of 10',
    measure: 'paced-1000',
    figure: growth('p99Us'),
    better: 'less',
    plotted: true,
    goals: [
      { wanted: 'growth: p99 of 1,000 clients ≤ 1.25× that of 10', atMost: 1.25 },
      {
        wanted: 'the same, beside what a direct connection grows by: ≤ 1.25×',
        against: 'direct',
        atMost: 1.25,
      },
    ],
  },
];

/** @type {readonly Row[]} */
const LOGINS = [
  {
    title: 'logins/s, returning users: JWT through pgjot, SCRAM elsewhere',
    measure: 'logins',
    figure: perSecond,
    better: 'more',
    plotted: true,
    goals: [
      {
        wanted: 'logins/s, returning users: ≥ 10× PgBouncer with SCRAM',
        against: 'pgbouncer',
        atLeast: 10,
      },
      { wanted: 'logins/s, returning users: ≥ 4× direct', against: 'direct', atLeast: 4 },
    ],
  },
  {
    title: 'logins/s, returning users: JWT through pgjot, no authentication elsewhere',
    measure: 'open-logins',
    figure: perSecond,
    better: 'more',
    plotted: true,
    goals: [
      {
        wanted: 'logins/s, returning users: ≥ 0.7× PgBouncer without authentication',
        against: 'pgbouncer',
        atLeast: 0.7,
      },
    ],
  },
  {
    title: 'proxy CPU, µs per login, returning users',
    measure: 'logins',
    figure: cpuUs,
    better: 'less',
  },
  {
    title: 'logins/s, returning users, TLS',
    measure: 'logins-tls',
    figure: perSecond,
    better: 'more',
    plotted: true,
  },
  {
    title: 'logins/s, every login a new user: JWT through pgjot, SCRAM elsewhere',
    measure: 'new-logins',
    figure: perSecond,
    better: 'more',
    plotted: true,
    goals: [
      {
        wanted: 'logins/s, every login a new user: ≥ direct with SCRAM',
        against: 'direct',
        atLeast: 1,
      },
    ],
  },
  {
    title: 'proxy CPU, µs per login, new users',
    measure: 'new-logins',
    figure: cpuUs,
    better: 'less',
  },
  {
    title: 'login of a new user among 16, ms, p50',
    measure: 'new-logins',
    figure: named('p50Ms'),
    better: 'less',
  },
  {
    title: 'login of a new user among 16, ms, p99',
    measure: 'new-logins',
    figure: named('p99Ms'),
    better: 'less',
  },
  {
    title: 'logins/s, every login a new user, TLS',
    measure: 'new-logins-tls',
    figure: perSecond,
    better: 'more',
    plotted: true,
  },
  {
    title: 'login of a new user, a spare ready, ms, p50',
    measure: 'lone-login',
    figure: named('p50Ms'),
    better: 'less',
    plotted: true,
  },
  {
    title: 'login of a new user, a spare ready, ms, p99',
    measure: 'lone-login',
    figure: named('p99Ms'),
    better: 'less',
  },
  {
    title: 'login of a new user, a spare ready, ms beyond the bare TCP connection, p50',
    measure: 'lone-login',
    figure: named('beyondConnectMs'),
    better: 'less',
    goals: [
      { wanted: 'login with a spare ready, p50: < 2 ms over a bare TCP connection', atMost: 2 },
    ],
  },
  {
    title: 'login without authentication (pgjot: with JWT), ms, p50',
    measure: 'open-lone-login',
    figure: named('p50Ms'),
    better: 'less',
  },
  {
    title: 'login of a new user beyond a direct one without authentication, ms, p50',
    measure: 'lone-login',
    figure: (sample, _column, round) =>
      (sample['p50Ms'] ?? NaN) - (round['open-lone-login']?.direct?.['p50Ms'] ?? NaN),
    better: 'less',
    goals: [
      {
        wanted: 'login with a spare ready, p50: < 2 ms over a direct one without authentication',
        atMost: 2,
      },
    ],
  },
  {
    title: 'a token seen before: µs to know it again',
    measure: 'token',
    figure: named('knownUs'),
    better: 'less',
    goals: [{ wanted: 'a cached token at login: ≤ 20 µs', atMost: 20 }],
  },
  {
    title: 'a token never seen before: µs to verify it (ES256)',
    measure: 'token',
    figure: named('newUs'),
    better: 'less',
  },
];

/** @type {readonly Row[]} */
const COPIES = [
  {
    title: 'COPY out, MB/s, 1,000-byte rows',
    measure: 'copy-out',
    figure: perSecond,
    better: 'more',
    plotted: true,
    goals: [{ wanted: 'COPY out: ≥ 1.3× PgBouncer', against: 'pgbouncer', atLeast: 1.3 }],
  },
  {
    title: 'COPY out, MB/s, 100-byte rows',
    measure: 'copy-out-narrow',
    figure: perSecond,
    better: 'more',
    plotted: true,
  },
  {
    title: 'COPY in, MB/s, 1,000-byte rows',
    measure: 'copy-in',
    figure: perSecond,
    better: 'more',
    plotted: true,
    goals: [{ wanted: 'COPY in: ≥ 1.3× PgBouncer', against: 'pgbouncer', atLeast: 1.3 }],
  },
  {
    title: 'COPY out, MB/s, 1,000-byte rows, TLS',
    measure: 'copy-out-tls',
    figure: perSecond,
    better: 'more',
    plotted: true,
  },
  {
    title: 'proxy CPU, µs per MB out, 1,000-byte rows',
    measure: 'copy-out',
    figure: cpuUs,
    better: 'less',
  },
  {
    title: 'proxy CPU, µs per MB out, 100-byte rows',
    measure: 'copy-out-narrow',
    figure: cpuUs,
    better: 'less',
  },
  { title: 'proxy CPU, µs per MB in', measure: 'copy-in', figure: cpuUs, better: 'less' },
  {
    title: 'memory grown by during a COPY out of 10 GB, MiB',
    measure: 'copy-10gb',
    figure: named('outMiB'),
    better: 'less',
    goals: [{ wanted: 'COPY out of 10 GB: memory flat (< 32 MiB more)', atMost: 32 }],
  },
  {
    title: 'COPY out of 10 GB, MB/s',
    measure: 'copy-10gb',
    figure: named('outPerSecond'),
    better: 'more',
  },
  {
    title: 'memory grown by during a COPY in of 10 GB, MiB',
    measure: 'copy-10gb',
    figure: named('inMiB'),
    better: 'less',
    goals: [{ wanted: 'COPY in of 10 GB: memory flat (< 32 MiB more)', atMost: 32 }],
  },
  {
    title: 'COPY in of 10 GB, MB/s',
    measure: 'copy-10gb',
    figure: named('inPerSecond'),
    better: 'more',
  },
];

/** @type {readonly Row[]} */
const OTHERS = [
  {
    title: 'statements/s, prepared, 16 clients, TLS',
    measure: 'prepared-tls',
    figure: perSecond,
    better: 'more',
    plotted: true,
  },
  {
    title: 'proxy CPU, µs per statement, prepared, 16 clients, TLS',
    measure: 'prepared-tls',
    figure: cpuUs,
    better: 'less',
    plotted: true,
  },
  {
    title: 'memory per silent session, KiB',
    measure: 'silent',
    figure: named('kibPerSession'),
    better: 'less',
    plotted: true,
    goals: [{ wanted: 'memory per silent session, 5,000 of them: ≤ 25 KiB', atMost: 25 }],
  },
  {
    title: 'memory per silent session, KiB, TLS',
    measure: 'silent-tls',
    figure: named('kibPerSession'),
    better: 'less',
    plotted: true,
  },
  {
    title: '`auth.user_id()` in a policy: µs it adds to a statement',
    measure: 'rls',
    figure: named('addedUs'),
    better: 'less',
    goals: [{ wanted: '`auth.user_id()` in a policy: ≤ 30 µs a statement', atMost: 30 }],
  },
];

/** In the order of the tables. */
export const ROWS = [...LOGINS, ...STATEMENTS, ...LATENCY, ...COPIES, ...OTHERS, ...GROWTH];

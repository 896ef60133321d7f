/**
 * A PostgreSQL that lets everybody in, knows just enough to be asked what a proxy asks at a login, and then is silent.
 *
 * Five thousand real backends would need more memory than most machines have; what is measured with this is the proxy in front of it.
 * It believes everybody: for loopback alone, and for nothing but the benchmark. Takes the port to listen on.
 */
import { createServer } from 'node:net';

const [port] = process.argv.slice(2).map(Number);
if (port === undefined) throw new Error('usage: node bench/silent-postgres.mjs PORT');

const BOOL = 16;
const TEXT = 25;
const SETTINGS = {
  application_name: '',
  client_encoding: 'UTF8',
  DateStyle: 'ISO, MDY',
  default_transaction_read_only: 'off',
  in_hot_standby: 'off',
  integer_datetimes: 'on',
  IntervalStyle: 'postgres',
  is_superuser: 'off',
  scram_iterations: '4096',
  search_path: '"$user", public',
  server_encoding: 'UTF8',
  server_version: '18.4',
  session_authorization: 'silent',
  standard_conforming_strings: 'on',
  TimeZone: 'Etc/UTC',
};

/**
 * @typedef {{ columns: readonly [name: string, type: number][], rows: (string | null)[][] }} Result
 * @typedef {object} Session
 * @property {number} pid
 * @property {Map<string, string>} statements
 * @property {Result} portal
 */

/** Whom the control connection has said that each backend belongs to. */
/** @type {Map<number, string>} */
const subjects = new Map();
let pids = 1_000;
let slots = 0;

createServer({ noDelay: true }, (socket) => {
  pids += 1;
  /** @type {Session} */
  const session = { pid: pids, statements: new Map(), portal: { columns: [], rows: [] } };
  let started = false;
  let rest = Buffer.alloc(0);
  socket.on('error', () => socket.destroy());
  socket.on('close', () => subjects.delete(session.pid));
  socket.on('data', (chunk) => {
    rest = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
    /** @type {Buffer[]} */
    const replies = [];
    for (;;) {
      const header = started ? 1 : 0;
      if (rest.length < header + 4) break;
      const length = rest.readUInt32BE(header) + header;
      if (rest.length < length) break;
      const body = rest.subarray(header + 4, length);
      if (started) replies.push(...answer(session, String.fromCharCode(rest[0] ?? 0), body));
      else if (body.readUInt32BE(0) === 80_877_103) replies.push(Buffer.from('N'));
      else {
        started = true;
        replies.push(...greeting(session.pid));
      }
      rest = rest.subarray(length);
    }
    // Its memory is a whole chunk's.
    if (rest.length === 0) rest = Buffer.alloc(0);
    if (replies.length > 0) socket.write(Buffer.concat(replies));
  });
}).listen({ port, host: '127.0.0.1', backlog: 4_096 });

/** @param {number} pid */
function greeting(pid) {
  return [
    frame('R', int32(0)),
    ...Object.entries(SETTINGS).map(([name, value]) => frame('S', text(name), text(value))),
    frame('K', int32(pid), int32(pid)),
    ready(),
  ];
}

/**
 * @param {Session} session
 * @param {string} type
 * @param {Buffer} body
 * @returns {Buffer[]}
 */
function answer(session, type, body) {
  if (type === 'Q') {
    const result = run(session, body.toString('utf8', 0, body.length - 1), []);
    return [description(result), ...rowsOf(result), ready()];
  }
  if (type === 'P') {
    const [name = '', sql = ''] = body.toString('utf8').split('\0');
    session.statements.set(name, sql);
    return [frame('1')];
  }
  if (type === 'B') {
    const { statement, values } = decodeBind(body);
    session.portal = run(session, session.statements.get(statement) ?? '', values);
    return [frame('2')];
  }
  if (type === 'D') return [description(session.portal)];
  if (type === 'E') return rowsOf(session.portal);
  return type === 'S' ? [ready()] : [];
}

/**
 * @param {Session} session
 * @param {string} sql
 * @param {readonly string[]} values
 * @returns {Result}
 */
function run({ pid }, sql, values) {
  const [first = '{}', , claims = '{}'] = values;
  if (sql.includes('pgjot.lease(')) {
    const names = Array.from({ length: Number(values[1]) }, () => [
      `pgjot_${first}_${(slots += 1)}`,
    ]);
    return { columns: [['slot', TEXT]], rows: names };
  }
  if (sql.includes('pgjot.bind(')) {
    const all = arrayOf(first).map(Number);
    const bound = arrayOf(claims);
    for (const [index, one] of all.entries()) {
      subjects.set(one, JSON.parse(bound[index] ?? '{}').sub);
    }
    return { columns: [['bind', TEXT]], rows: all.map(() => ['']) };
  }
  if (sql.includes('pgjot.unbind(')) {
    return { columns: [['alive', BOOL]], rows: arrayOf(first).map(() => ['f']) };
  }
  if (sql.includes('pgjot.greet(')) {
    return {
      columns: [
        ['start', TEXT],
        ['dirty', BOOL],
        ['inRecovery', BOOL],
        ['preparedFor', TEXT],
      ],
      rows: arrayOf(first).map(() => ['1', 'f', 'f', 'portable']),
    };
  }
  if (sql.includes('pgjot.user_id()')) {
    const subject = subjects.get(pid);
    const hex = subject === undefined ? null : Buffer.from(subject).toString('hex');
    const columns = ['encode', 'pg_backend_pid'];
    return { columns: columns.map((name) => [name, TEXT]), rows: [[hex, String(pid)]] };
  }
  return { columns: [['nothing', TEXT]], rows: [] };
}

/** @param {Buffer} body */
function decodeBind(body) {
  const portalEnd = body.indexOf(0);
  const statementEnd = body.indexOf(0, portalEnd + 1);
  const statement = body.toString('utf8', portalEnd + 1, statementEnd);
  let at = statementEnd + 3 + 2 * body.readInt16BE(statementEnd + 1);
  /** @type {string[]} */
  const values = [];
  at += 2;
  for (let left = body.readInt16BE(at - 2); left > 0; left -= 1) {
    const length = Math.max(body.readInt32BE(at), 0);
    values.push(body.toString('utf8', at + 4, at + 4 + length));
    at += 4 + length;
  }
  return { statement, values };
}

/**
 * The elements of an array's text, each in quotes as `pg` writes them.
 *
 * @param {string} literal
 * @returns {string[]}
 */
function arrayOf(literal) {
  return JSON.parse(`[${literal.slice(1, -1)}]`);
}

/** @param {Result} result */
const description = ({ columns }) =>
  frame(
    'T',
    int16(columns.length),
    ...columns.map(([name, type]) =>
      // Table and column, type, its size and modifier, text format.
      Buffer.concat([text(name), int32(0), int16(0), int32(type), int16(-1), int32(-1), int16(0)]),
    ),
  );

/** @param {Result} result */
const rowsOf = ({ rows }) => [
  ...rows.map((row) =>
    frame(
      'D',
      int16(row.length),
      ...row.flatMap((value) =>
        value === null ? [int32(-1)] : [int32(Buffer.byteLength(value)), Buffer.from(value)],
      ),
    ),
  ),
  frame('C', text(`SELECT ${rows.length}`)),
];

function ready() {
  return frame('Z', Buffer.from('I'));
}

/**
 * @param {string} type
 * @param {readonly Buffer[]} parts
 */
function frame(type, ...parts) {
  const body = Buffer.concat(parts);
  return Buffer.concat([Buffer.from(type), int32(body.length + 4), body]);
}

/** @param {string} value */
function text(value) {
  return Buffer.from(`${value}\0`);
}

/** @param {number} value */
function int16(value) {
  const bytes = Buffer.alloc(2);
  bytes.writeInt16BE(value);
  return bytes;
}

/** @param {number} value */
function int32(value) {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32BE(value);
  return bytes;
}

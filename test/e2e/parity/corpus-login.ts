/**
 * The corpus of the password exchange: what may come in place of a PasswordMessage, what it may hold,
 * and what may stand behind it.
 *
 * https://www.postgresql.org/docs/current/protocol-message-formats.html#PROTOCOL-MESSAGE-FORMATS-PASSWORDMESSAGE
 */
import type { Login, WireCase } from './corpus.ts';
import {
  byteByByte,
  CODES,
  cstring,
  frame,
  packet,
  passwordMessage,
  query,
  SSL_REQUEST,
  startup,
  TERMINATE,
} from './bytes.ts';
import type { Step } from './probe.ts';

/** The cases of this file. */
export function loginPhase(): WireCase[] {
  return [
    ...firstMessages(),
    ...passwordFrames(),
    ...wrongPasswords(),
    ...goodLogins(),
    ...endings(),
  ];
}

const whole = ({ user, database }: Login) =>
  startup([
    ['user', user],
    ['database', database],
  ]);

/** The startup, its answer, then these steps. */
const afterRequest = (name: string, shows: string, ...steps: Step[]): WireCase => ({
  name,
  shows,
  steps: (login) => [whole(login), 'await reply', ...steps],
});

function firstMessages(): WireCase[] {
  const shows = 'nothing but a password is taken where a password was asked for (A13)';
  const instead: [name: string, bytes: Buffer][] = [
    ['Query', query('select 1')],
    ['Terminate', TERMINATE],
    ['Sync', frame('S')],
    ['Flush', frame('H')],
    ['Parse', frame('P', '\0select 1\0\0\0')],
    ['Bind', frame('B', Buffer.alloc(8))],
    ['CopyData', frame('d', 'x')],
    ['CopyFail', frame('f', 'x\0')],
    ['FunctionCall', frame('F', Buffer.alloc(12))],
    ['a message of unknown type', frame('!', 'x')],
    ['a server message', frame('R', Buffer.alloc(4))],
    ['0xff', frame(0xff, 'x')],
    ['a second startup', packet(CODES.v3, Buffer.from('user\0u\0\0'))],
    ['SSLRequest', SSL_REQUEST],
    ['HTTP', Buffer.from('GET / HTTP/1.1\r\n\r\n')],
    ['an unknown type with a huge length', frame('!', '', 0x7fff_ffff)],
    ['an unknown type byte alone', Buffer.from('!')],
    ['a zero byte alone', Buffer.alloc(1)],
    ['Terminate with a body', frame('X', 'bye')],
  ];
  return instead.map(([name, bytes]) =>
    afterRequest(`${name} in place of the password`, shows, bytes),
  );
}

function passwordFrames(): WireCase[] {
  const shows = 'a password frame is measured before it is read, and must end in its only NUL (A7)';
  const of = (length: number) => Buffer.concat([Buffer.alloc(length - 1, 0x61), Buffer.alloc(1)]);
  const cases: [name: string, bytes: Buffer][] = [
    ...[0, 1, 2, 3, -1, -0x8000_0000, 65_536, 65_537, 0x0100_0000, 0x7fff_ffff].map(
      (length): [string, Buffer] => [`password declaring length ${length}`, frame('p', '', length)],
    ),
    ['password of length 4', frame('p')],
    ['password of length 5, the NUL', frame('p', '\0')],
    ['password of length 5, no NUL', frame('p', 'a')],
    ['password without NUL', frame('p', 'secret')],
    ['password with a NUL inside', frame('p', 'sec\0ret\0')],
    ['password with a NUL first', frame('p', '\0secret\0')],
    ['password with two NULs behind', frame('p', 'secret\0\0')],
    ['password with a byte behind the NUL', frame('p', 'secret\0x')],
    ['password of 65,535 bytes on the wire', frame('p', of(65_531))],
    ['password of 65,536 bytes on the wire', frame('p', of(65_532))],
    ['password of 70,000 bytes on the wire', frame('p', of(69_996))],
    ['password cut off', passwordMessage('secret').subarray(0, 9)],
    ['the type byte of a password alone', Buffer.from('p')],
  ];
  return cases.map(([name, bytes]) => afterRequest(name, shows, bytes));
}

function wrongPasswords(): WireCase[] {
  const shows = 'every password that is not the right one is refused alike';
  const wrong: [name: string, password: string][] = [
    ['a short word', 'x'],
    ['a long word', 'x'.repeat(20_000)],
    ['three parts', 'a.b.c'],
    ['a token with alg none', 'eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGljZSJ9.'],
    ['two dots', '..'],
    ['quotes and semicolons', `'; drop table todos; --`],
    ['control bytes', '\u0001\u0002\n\r\t'],
    ['emoji', '🔑'.repeat(10)],
  ];
  return [
    ...wrong.map(([name, password]) =>
      afterRequest(`wrong password: ${name}`, shows, passwordMessage(password)),
    ),
    {
      name: 'wrong password for a user that does not exist',
      shows,
      steps: () => [startup([['user', 'nobody_knows_me']]), 'await reply', passwordMessage('x')],
    },
    {
      name: 'wrong password, with a query behind it',
      shows: 'what follows a refused password is never looked at (A8)',
      steps: (login) => [
        whole(login),
        'await reply',
        Buffer.concat([passwordMessage('x'), query('select 1')]),
      ],
    },
    {
      name: 'wrong password, in the same segment as the startup',
      shows,
      steps: (login) => [Buffer.concat([whole(login), passwordMessage('x')])],
    },
    {
      name: 'wrong password twice',
      shows,
      steps: (login) => [whole(login), 'await reply', passwordMessage('x'), passwordMessage('x')],
    },
    {
      name: 'startup twice in one segment',
      shows,
      steps: (login) => [Buffer.concat([whole(login), whole(login)])],
    },
    {
      name: 'wrong password one byte at a time',
      shows,
      steps: (login) => [whole(login), 'await reply', ...byteByByte(passwordMessage('x.y.z'))],
    },
  ];
}

function goodLogins(): WireCase[] {
  const shows = 'boundaries between segments mean nothing (A9)';
  const all = (login: Login) => [
    whole(login),
    passwordMessage(login.password),
    query("select 'in'"),
    TERMINATE,
  ];
  return [
    {
      name: 'a whole session in one segment',
      shows,
      steps: (login) => [Buffer.concat(all(login))],
    },
    { name: 'a whole session in four segments', shows, steps: (login) => all(login) },
    {
      name: 'a whole session, each message answered',
      shows,
      steps: (login) => all(login).flatMap((message): Step[] => [message, 'await reply']),
    },
    {
      name: 'a whole session one byte at a time',
      shows,
      steps: (login) => byteByByte(Buffer.concat(all(login))),
    },
    {
      name: 'a login, then the wait for a query',
      shows: 'a session that says nothing is kept',
      steps: (login) => all(login).slice(0, 2),
    },
    {
      name: 'a login, then EOF',
      shows: 'EOF ends a session',
      steps: (login) => [...all(login).slice(0, 2), 'await reply', 'half-close'],
    },
    {
      name: 'a login, then a second startup',
      shows: 'a session is the business of PostgreSQL (A13)',
      steps: (login) => [...all(login).slice(0, 2), 'await reply', whole(login)],
    },
    {
      name: 'a login, then an unknown message type',
      shows: 'a session is the business of PostgreSQL (A13)',
      steps: (login) => [...all(login).slice(0, 2), 'await reply', frame('!', 'x')],
    },
    {
      name: 'a login, then a second password',
      shows: 'a session is the business of PostgreSQL (A13)',
      steps: (login) => [...all(login).slice(0, 2), 'await reply', passwordMessage('again')],
    },
    {
      name: 'a login, then a query with an error',
      shows: 'errors of SQL pass as they are',
      steps: (login) => [...all(login).slice(0, 2), query('select 1/0'), TERMINATE],
    },
    {
      name: 'a login, an empty query and a query without NUL',
      shows: 'a session is the business of PostgreSQL (A13)',
      steps: (login) => [...all(login).slice(0, 2), query(''), frame('Q', 'select 1')],
    },
  ];
}

function endings(): WireCase[] {
  const shows = 'a client that leaves is let go, wherever it was';
  return [
    afterRequest('EOF in place of the password', shows, 'half-close'),
    afterRequest('EOF after the type byte of the password', shows, Buffer.from('p'), 'half-close'),
    afterRequest('EOF after the length of the password', shows, frame('p', '', 100), 'half-close'),
    afterRequest(
      'EOF one byte before the end of the password',
      shows,
      passwordMessage('x').subarray(0, -1),
      'half-close',
    ),
    afterRequest('wrong password and EOF together', shows, passwordMessage('x'), 'half-close'),
    {
      name: 'startup, wrong password and EOF without waiting',
      shows,
      steps: (login) => [whole(login), passwordMessage('x'), 'half-close'],
    },
    {
      name: 'a whole session and EOF without waiting',
      shows: 'what was sent before the EOF is done',
      steps: (login) => [
        whole(login),
        passwordMessage(login.password),
        query("select 'in'"),
        'half-close',
      ],
    },
    afterRequest('password cut off by a terminator', shows, frame('p', cstring('x'), 4)),
  ];
}

"""A headless Chromium, spoken to by its own protocol: opens a page, runs expressions in it, takes pictures."""
import asyncio
import base64
import contextlib
import itertools
import json
import re
import shutil
import tempfile

import aiohttp

PROGRAM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
FLAGS = ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--remote-debugging-port=0',
         '--no-first-run', '--hide-scrollbars')
DESKTOP, PHONE = (1280, 900), (390, 844)  # pixels


class Tab:
  """One page of the browser.

  said: what its console and its errors say.   fetched: addresses that it asked for, its own aside.
  """

  def __init__(self, socket):
    self._socket, self._numbers = socket, itertools.count(1)
    self.said, self.fetched = [], []

  async def call(self, method, **params):
    """The result of a method of the protocol."""
    number = next(self._numbers)
    await self._socket.send_json({'id': number, 'method': method, 'params': params})
    async for message in self._socket:
      answer = json.loads(message.data)
      self._note(answer)
      if answer.get('id') == number:
        assert 'error' not in answer, answer
        return answer['result']
    raise AssertionError('the browser has gone')

  def _note(self, answer):
    if answer.get('method') in ('Runtime.exceptionThrown', 'Log.entryAdded', 'Runtime.consoleAPICalled'):
      self.said.append(json.dumps(answer['params']))
    if answer.get('method') == 'Network.requestWillBeSent':
      self.fetched.append(answer['params']['request']['url'])

  async def evaluate(self, expression):
    """The value of an expression of JavaScript, awaited where it is a promise."""
    result = await self.call('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True)
    assert 'exceptionDetails' not in result, result
    return result['result'].get('value')

  async def until(self, expression, seconds=30):
    """Waits until an expression is true."""
    for _ in range(10 * seconds):
      if await self.evaluate(expression):
        return
      await asyncio.sleep(0.1)
    raise AssertionError(f'never true: {expression}')

  async def resize(self, size):
    width, height = size
    await self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1,
                    mobile=width < 600)

  async def open(self, address):
    await self.call('Page.navigate', url=address)
    await self.evaluate("new Promise((done) => document.readyState === 'complete' ? done() "
                        ": addEventListener('load', () => done()))")

  async def picture(self):
    """The whole page as PNG."""
    return base64.b64decode((await self.call('Page.captureScreenshot', captureBeyondViewport=True))['data'])


@contextlib.asynccontextmanager
async def tab():
  """A tab of a browser of its own."""
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    process = await asyncio.create_subprocess_exec(
      PROGRAM, *FLAGS, f'--user-data-dir={profile}', 'about:blank', stderr=asyncio.subprocess.PIPE,
      stdout=asyncio.subprocess.DEVNULL)
    try:
      port = await asyncio.wait_for(_port(process), 60)
      async with aiohttp.ClientSession() as session:
        async with session.get(f'http://127.0.0.1:{port}/json') as listed:
          [page, *_] = [each for each in await listed.json() if each['type'] == 'page']
        async with session.ws_connect(page['webSocketDebuggerUrl'], max_msg_size=0) as socket:
          found = Tab(socket)
          for domain in ('Page', 'Runtime', 'Log', 'Network'):
            await found.call(f'{domain}.enable')
          yield found
    finally:
      process.terminate()
      await process.wait()


async def _port(process):
  async for line in process.stderr:
    found = re.search(rb'DevTools listening on ws://[^:]+:(\d+)/', line)
    if found:
      return int(found[1])
  raise AssertionError('the browser did not start')
